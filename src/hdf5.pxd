# The part of HDF5's C API (hdf5.h) that localckpt uses. It is the same from 1.8 to 1.14; callbacks whose
# arguments have changed are cast.

from libc.stdint cimport int64_t

cdef extern from "hdf5.h" nogil:
    ctypedef int64_t hid_t
    ctypedef int herr_t
    ctypedef int htri_t
    ctypedef unsigned long long hsize_t
    ctypedef unsigned long long haddr_t
    ctypedef int H5I_type_t
    ctypedef int H5T_class_t
    enum:
        H5P_DEFAULT
        H5S_ALL
        H5S_MAX_RANK
        H5E_DEFAULT
    H5I_type_t H5I_DATASET
    H5T_class_t H5T_FLOAT
    H5T_class_t H5T_INTEGER
    int H5F_SCOPE_GLOBAL, H5S_SELECT_SET, H5S_SCALAR, H5E_WALK_UPWARD
    int H5_INDEX_NAME, H5_ITER_NATIVE, H5FD_MPIO_COLLECTIVE
    hid_t H5P_DATASET_XFER, H5P_DATASET_CREATE
    int H5D_CHUNKED, H5D_CONTIGUOUS, H5D_ALLOC_TIME_EARLY, H5D_FILL_TIME_NEVER
    hid_t H5T_NATIVE_FLOAT, H5T_NATIVE_DOUBLE, H5T_NATIVE_UINT8
    hid_t H5T_NATIVE_INT8, H5T_NATIVE_INT16, H5T_NATIVE_INT32, H5T_NATIVE_INT64
    hid_t H5T_NATIVE_UINT16, H5T_NATIVE_UINT32, H5T_NATIVE_UINT64

    # H5E
    ctypedef herr_t (*H5E_auto2_t)(hid_t, void*)
    ctypedef struct H5E_error2_t:
        const char* func_name
        const char* desc
    ctypedef herr_t (*H5E_walk2_t)(unsigned, const H5E_error2_t*, void*)
    herr_t H5Eget_auto2(hid_t, H5E_auto2_t*, void**)
    herr_t H5Eset_auto2(hid_t, H5E_auto2_t, void*)
    herr_t H5Ewalk2(hid_t, int, H5E_walk2_t, void*)
    herr_t H5Eclear2(hid_t)
    # H5F, H5G, H5O, H5I
    herr_t H5Fflush(hid_t, int)
    hid_t H5Gcreate2(hid_t, const char*, hid_t, hid_t, hid_t)
    htri_t H5Oexists_by_name(hid_t, const char*, hid_t)
    hid_t H5Oopen(hid_t, const char*, hid_t)
    herr_t H5Oclose(hid_t)
    H5I_type_t H5Iget_type(hid_t)
    # H5L
    ctypedef herr_t (*H5L_iterate_t)(hid_t, const char*, const void*, void*)
    herr_t H5Ldelete(hid_t, const char*, hid_t)
    htri_t H5Lexists(hid_t, const char*, hid_t)
    herr_t H5Lvisit(hid_t, int, int, H5L_iterate_t, void*)
    # H5D, H5S, H5T
    hid_t H5Dcreate2(hid_t, const char*, hid_t, hid_t, hid_t, hid_t, hid_t)
    hid_t H5Dget_space(hid_t)
    hid_t H5Dget_type(hid_t)
    hid_t H5Dget_create_plist(hid_t)
    haddr_t H5Dget_offset(hid_t)
    herr_t H5Dread(hid_t, hid_t, hid_t, hid_t, hid_t, void*)
    herr_t H5Dwrite(hid_t, hid_t, hid_t, hid_t, hid_t, const void*)
    hid_t H5Screate(int)
    hid_t H5Screate_simple(int, const hsize_t*, const hsize_t*)
    int H5Sget_simple_extent_ndims(hid_t)
    int H5Sget_simple_extent_dims(hid_t, hsize_t*, hsize_t*)
    herr_t H5Sselect_hyperslab(hid_t, int, const hsize_t*, const hsize_t*, const hsize_t*, const hsize_t*)
    herr_t H5Sselect_none(hid_t)
    herr_t H5Sselect_all(hid_t)
    herr_t H5Sclose(hid_t)
    H5T_class_t H5Tget_class(hid_t)
    htri_t H5Tequal(hid_t, hid_t)
    size_t H5Tget_size(hid_t)
    int H5Tget_sign(hid_t)
    herr_t H5Tclose(hid_t)
    # H5A
    htri_t H5Aexists(hid_t, const char*)
    hid_t H5Acreate2(hid_t, const char*, hid_t, hid_t, hid_t, hid_t)
    hid_t H5Aopen(hid_t, const char*, hid_t)
    herr_t H5Aread(hid_t, hid_t, void*)
    herr_t H5Awrite(hid_t, hid_t, const void*)
    herr_t H5Aclose(hid_t)
    # H5P
    hid_t H5Pcreate(hid_t)
    herr_t H5Pset_dxpl_mpio(hid_t, int)
    herr_t H5Pclose(hid_t)
    int H5Pget_layout(hid_t)
    herr_t H5Pset_layout(hid_t, int)
    herr_t H5Pset_alloc_time(hid_t, int)
    herr_t H5Pset_fill_time(hid_t, int)
