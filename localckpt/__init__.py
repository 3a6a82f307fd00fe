from localckpt._errors import *
from localckpt._vecfile import VecFile
