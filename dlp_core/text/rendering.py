"""Renders chat templates that come with adapters, in a process of its own: `python -m dlp_core.text.rendering FD`.

A template is a program. The sandbox it runs in keeps it from the machine, but not from looping for an hour or filling
the memory. So the process has little memory, and little time of the processor for each rendering; it ends where a
template wants more, and its parent (foreign.py) starts another.

Each line read from the socket FD is a request, each line written its answer:

    {"template": str, "turns": [{"role", "content"}, ...], "tools": [...] or null, "answer": bool,
     "special": {"bos_token": str, ...}}
    {"text": str} or {"error": str}
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

MEMORY_BYTES = 256 * 2**20
"""Beyond what the process has once it is ready."""

CPU_SECONDS = 1.0
"""For one rendering; templates take a millisecond. Of the processor's time: a busy machine refuses nobody."""


def main() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    def render(request: dict[str, Any]) -> dict[str, str]:
        try:
            [text], _ = render_jinja_template(
                [request["turns"]],
                tools=request["tools"],
                chat_template=request["template"],
                add_generation_prompt=request["answer"],
                **request["special"],
            )
        except MemoryError:
            sys.exit("a chat template needs too much memory")
        except Exception as error:  # jinja2 may raise anything
            return {"error": f"{error}"}
        return {"text": text}

    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_size(resource.getpagesize()) + MEMORY_BYTES,) * 2)
    with socket.socket(fileno=int(sys.argv[1])) as connection, connection.makefile("rw", encoding="utf-8") as lines:
        for line in lines:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # whose signal ends the process
            answer = json.dumps(render(json.loads(line)))
            signal.setitimer(signal.ITIMER_PROF, 0)
            lines.write(answer + "\n")
            lines.flush()


def _size(page: int) -> int:
    """Bytes of this process's address space."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * page


if __name__ == "__main__":
    main()
