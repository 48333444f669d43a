"""The status page's files, as they are served: no build step, nothing from elsewhere.

`index.html` is the skeleton, `status.css` its looks. `status.js` polls the node and passes the answers to the other
modules: `status-view.js` (verdict, figures, sinks, lists), `status-plot.js` (the plots) and `status-words.js` (numbers
and times in words). The verdict, the levels and the meanings are the server's: the page has no opinion of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}

_FILES = {
    "/": "index.html",
    "/status.css": "status.css",
    "/status.js": "status.js",
    "/status-plot.js": "status-plot.js",
    "/status-view.js": "status-view.js",
    "/status-words.js": "status-words.js",
}

# What goes out with each of them. The policy admits nothing but these files and questions to this server, so
# that a text that got into the page as markup could still not run or send anything.
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": "default-src 'none'; connect-src 'self'; script-src 'self'; "
        "style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        # Asked for again each time: after an upgrade no old part must meet a new one.
        "Cache-Control": "no-cache",
    }
)

# Content type and body of every path. Read once: the page must answer when the disk no longer does.
ASSETS: Mapping[str, tuple[str, bytes]] = MappingProxyType(
    {
        path: (_TYPES[name.rpartition(".")[2]], files(__name__).joinpath(name).read_bytes())
        for path, name in _FILES.items()
    }
)
