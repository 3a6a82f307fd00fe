"""Which arrays are on disk already."""

import weakref

from localckpt.storage.stored import Stored

__all__ = ["Content", "ContentIndex"]

# An array's size in bytes, the hash of its valid entries, and whether it was rounded when it was stored: one that is
# to be stored exactly is not to be found then.
Content = tuple[int, bytes, bool]

PRUNE_FROM = 1000  # with fewer entries than this, those of dropped arrays do no harm


class ContentIndex:
    """Finds the stored array that has a given content, as long as somebody holds it.

    Nothing here is collective.

    Notes
    -----
    A ``WeakValueDictionary`` would do the same, but adding to it takes longer than writing a small array.
    So entries of dropped arrays stay until there are many, and are then removed all at once.
    """

    __slots__ = ("_references", "_prune_above")

    def __init__(self) -> None:
        self._references: dict[Content, weakref.ref[Stored]] = {}
        self._prune_above = PRUNE_FROM

    def find(self, content: Content) -> Stored | None:
        """Return the array with this content, or None if nobody holds one."""
        reference = self._references.get(content)
        return None if reference is None else reference()

    def add(self, content: Content, reference: "weakref.ref[Stored]") -> None:
        """Remember an array, which this does not keep alive."""
        if len(self._references) > self._prune_above:
            self._prune()
        self._references[content] = reference

    def clear(self) -> None:
        """Forget all arrays."""
        self._references = {}
        self._prune_above = PRUNE_FROM

    def _prune(self) -> None:
        self._references = {content: held for content, held in self._references.items() if held() is not None}
        self._prune_above = max(PRUNE_FROM, 2 * len(self._references))

    def __len__(self) -> int:
        return len(self._references)
