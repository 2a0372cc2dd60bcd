"""One evaluation from start to results: opens the bank and the journal, loads the model, runs the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlp_core.bank.disk_cache import DiskCache
from dlp_core.bank.served_base import ServedBase, check_served
from dlp_core.decision import usable
from dlp_core.engine.config import EngineConfig
from dlp_core.eval.arms import Arm, Chooser
from dlp_core.eval.evaluation import Phase, evaluate
from dlp_core.eval.journal import Journal
from dlp_core.eval.judged_bank import JudgedBank, open_bank
from dlp_core.eval.results import Results, save
from dlp_core.eval.suite import Suite
from dlp_core.quiet import quiet_transformers
from dlp_core.router import Router, restricted
from dlp_core.store.base_model import describe
from dlp_core.store.protocol import AdapterStore

if TYPE_CHECKING:
    from dlp_core.eval.answers import Answerer

_MAX_SLOTS = 64


@dataclass(frozen=True, slots=True)
class Setup:
    """The model and the engine it runs in."""

    base_model: Path
    dtype: str
    device: str
    threads: int | None = None
    concurrency: int = 16
    """Maximum number of requests in the engine at a time."""
    cache_tokens: int = 16_384
    batch_tokens: int = 256

    def name(self) -> str:
        """What answers depend on besides adapters. Raises InvalidRequest if the folder is not a model."""
        model = describe(self.base_model)
        return f"{model.name} {model.digest[:19]} in {self.dtype}"

    def conditions(self) -> str:
        """What the times of answers depend on besides."""
        threads = ""
        if self.device == "cpu":
            import torch

            count = self.threads or torch.get_num_threads()
            threads = f" with {count} {'thread' if count == 1 else 'threads'}"
        return f"{self.device}{threads}, {self.concurrency} requests at a time"


def run_evaluation(
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
    """Evaluate the bank at `location` (see judged_bank.open_bank) under `arms`, or the default ones, and save the
    results in `history`, or else in the store the bank is published in, if any.

    `journal` is the file that records answers, so that a killed run resumes. Raises InvalidRequest,
    BankError for a bank of another base model, and what reading the bank and the engine raise.
    """
    served = ServedBase.at(setup.base_model)
    with open_bank(location, cache) as bank, closing(Journal(journal)) as open_journal:
        check_served(bank.manifest.base_model, served, strict=False)
        router = None
        if bank.router is not None:
            names = usable(bank.manifest, None, max_adapters=suite.settings.max_adapters)
            router = restricted(bank.router, names)
        manifest = bank.manifest
        chooser = Chooser(suite, router, manifest.names, manifest.recipe_mixes, manifest.together)
        resolved = chooser.resolve(arms)
        results = asyncio.run(_run(chooser, resolved, bank, setup, journal=open_journal, phase=phase))
        if (store := history or bank.store) is not None:
            save(store, results)
        return results


async def _run(
    chooser: Chooser, arms: Sequence[Arm], bank: JudgedBank, setup: Setup, *, journal: Journal, phase: Phase
) -> Results:
    async with answering(bank, chooser.router, setup, journal) as answerer:
        return await evaluate(
            chooser,
            arms,
            bank,
            answerer,
            setup=setup.name(),
            conditions=setup.conditions(),
            concurrency=setup.concurrency,
            phase=phase,
        )


@asynccontextmanager
async def answering(bank: JudgedBank, router: Router | None, setup: Setup, journal: Journal) -> AsyncIterator[Answerer]:
    """An engine over the bank that answers jobs, for the length of the block; `router` routes their sentences. Raises
    what loading it raises."""
    from dlp_core.engine.loading import load
    from dlp_core.eval.answers import Answerer

    config = EngineConfig(
        slots=min(len(bank.manifest.adapters), _MAX_SLOTS),
        max_requests=setup.concurrency,
        cache_tokens=setup.cache_tokens,
        batch_tokens=setup.batch_tokens,
    )
    with quiet_transformers():
        loaded = load(
            setup.base_model, bank.source, config, dtype=setup.dtype, device=setup.device, threads=setup.threads
        )
    await loaded.engine.start()
    try:
        yield Answerer(loaded, bank.manifest, router, journal, setup=setup.name(), source=bank.source)
    finally:
        await loaded.engine.stop()
