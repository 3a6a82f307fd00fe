from collections.abc import Callable
from typing import Any

def register(make: Callable[[], Any]) -> None: ...
