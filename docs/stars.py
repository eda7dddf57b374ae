"""A hook of the site: the star of shapes such as (B, *S, n, C) in docstrings is no emphasis."""

import re

from griffe import Extension, Object


class Stars(Extension):
    """Escapes *S outside of indented code."""

    def on_object(self, *, obj: Object, **kwargs) -> None:
        """Called for every module, class and function."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?<![\\`\w])\*(?=S\b)", r"\\*", obj.docstring.value)
