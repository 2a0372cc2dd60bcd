"""One evaluation from its parts on disk to its results: model, bank, journal, engine."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dlp_core.bank.disk_cache import DiskCache
from dlp_core.engine.config import EngineConfig
from dlp_core.eval.arms import Arm, Chooser
from dlp_core.eval.evaluation import Phase, evaluate
from dlp_core.eval.journal import Journal
from dlp_core.eval.judged_bank import JudgedBank, opened
from dlp_core.eval.results import Results, keep
from dlp_core.eval.suite import Suite
from dlp_core.quiet import quiet_transformers
from dlp_core.store.base_model import describe
from dlp_core.store.protocol import AdapterStore

_MOST_SLOTS = 64


@dataclass(frozen=True, slots=True)
class Setup:
    """What the model runs on."""

    base_model: Path
    dtype: str
    device: str
    threads: int | None = None
    at_once: int = 16
    """Requests in the engine at a time."""
    cache_tokens: int = 16_384
    batch_tokens: int = 256

    def name(self) -> str:
        """What answers depend on beside adapters. Raises InvalidRequest if the folder holds no model."""
        model = describe(self.base_model)
        return f"{model.name} {model.digest[:19]} in {self.dtype}"


def judge(
    suite: Suite,
    arms: Collection[str] | None,
    location: str,
    setup: Setup,
    *,
    cache: DiskCache,
    journal: Path | None,
    phase: Phase,
    history: AdapterStore | None = None,
) -> Results:
    """Evaluates the bank at `location` (see judged_bank.opened) by these arms, or by the standard ones, and keeps the
    results in `history`, or else in the store the bank is published in, if it is.

    `journal` is the file answers are kept in, so that a killed run goes on. Raises InvalidRequest, and what reading the
    bank and the engine raise.
    """
    with opened(location, cache) as bank, closing(Journal(journal)) as answers:
        chooser = Chooser(suite, bank.router, [adapter.name for adapter in bank.manifest.adapters])
        chosen = chooser.checked(arms)
        results = asyncio.run(_judge(chooser, chosen, bank, setup, journal=answers, phase=phase))
        if (store := history or bank.store) is not None:
            keep(store, results)
        return results


async def _judge(
    chooser: Chooser, arms: Sequence[Arm], bank: JudgedBank, setup: Setup, *, journal: Journal, phase: Phase
) -> Results:
    from dlp_core.engine.loading import load
    from dlp_core.eval.answers import Answerer

    name = setup.name()
    config = EngineConfig(
        slots=min(len(bank.manifest.adapters), _MOST_SLOTS),
        max_requests=setup.at_once,
        cache_tokens=setup.cache_tokens,
        batch_tokens=setup.batch_tokens,
    )
    with quiet_transformers():
        loaded = load(
            setup.base_model, bank.source, config, dtype=setup.dtype, device=setup.device, threads=setup.threads
        )
    loaded.engine.start()
    try:
        return await evaluate(
            chooser,
            arms,
            bank.manifest,
            Answerer(loaded, bank.manifest, bank.router, journal, setup=name),
            setup=name,
            at_once=setup.at_once,
            phase=phase,
        )
    finally:
        await loaded.engine.stop()
