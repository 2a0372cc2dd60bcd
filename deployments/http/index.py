"""`GET /`: what this server is and where its pages are, as JSON, or as a small page for browsers."""

from __future__ import annotations

from html import escape
from importlib import metadata

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

PACKAGE = "dlp-serve"
LINKS = {
    "docs": "/docs",
    "openapi": "/openapi.json",
    "models": "/v1/models",
    "bank": "/v1/bank",
    "health": "/health",
    "metrics": "/metrics",
}

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{name}</title>
<style>body {{ font: 1rem/1.6 system-ui, sans-serif; margin: 3rem auto; max-width: 40rem; padding: 0 1rem }}</style>
<h1>{name} <small>{version}</small></h1>
<p>A bank of LoRA adapters behind one OpenAI-compatible endpoint: <code>POST /v1/chat/completions</code>.</p>
<ul>
{links}
</ul>
</html>
"""


def index(request: Request, *, known: bool, console_url: str | None) -> Response:
    """The answer. Only callers who are `known` are told the version."""
    links = LINKS if console_url is None else {"console": console_url, **LINKS}
    version = {"version": metadata.version(PACKAGE)} if known else {}
    headers = {"vary": "Accept"}
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"name": PACKAGE, **version, **links}, headers=headers)
    items = [f'<li><a href="{escape(url)}">{name}</a></li>' for name, url in links.items()]
    page = _PAGE.format(name=PACKAGE, version=version.get("version", ""), links="\n".join(items))
    return HTMLResponse(page, headers=headers)
