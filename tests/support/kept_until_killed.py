"""Adds records to a BatchWriter without end and prints the number of each that it takes.

python -m tests.support.kept_until_killed FOLDER MOST_WAITING
"""

from __future__ import annotations

import json
import sys
import time
from itertools import count

from dlp_core.store.batches import BatchWriter
from dlp_core.store.opening import open_store


def main(folder: str, most_waiting: int) -> None:
    writer = BatchWriter(open_store(folder), "feedback/", name="w", batch=5, delay_s=0.01, most_waiting=most_waiting)
    for number in count():
        if writer.add(json.dumps({"id": f"fb-{number}", "created": float(number), "key": "a", "bank": "b"})):
            print(number, flush=True)
        else:
            time.sleep(0.001)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
