"""The library on its own, without Ray or S3: one model, three adapters, explicit and routed mixes.

python -m examples.library .demo/SmolLM2-135M-Instruct     (`make demo` unpacks that model)
"""

import asyncio
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import dlp_core as dlp

BANK = Path(__file__).parent / "bank"


async def main(base: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    fusion = dlp.install(model)
    adapters = dlp.FolderSource({name: BANK / "adapters" / name for name in ("cron", "shell", "text_to_sql")})
    residency = dlp.Residency(adapters, fusion, slots=3)
    engine = dlp.FusedEngine(model, fusion, residency, dlp.EngineConfig(slots=3))
    codec = dlp.TextCodec(AutoTokenizer.from_pretrained(base), context=engine.context)
    generator = dlp.Generator(engine, codec, default_max_tokens=40)
    await engine.start()

    async def answer(question: str, mix: dlp.Mix) -> str:
        messages = (dlp.Message("user", question),)
        completion = await generator.complete(messages, mix, dlp.Sampling(), request_id=f"{mix} {question}")
        return f"{question} [{mix}] {completion.text}"

    questions = ["cron for every weekday at 7:30 am", "Count the lines of server.log", "What is the capital of France?"]
    routed = [routing.mix() for routing in dlp.Router.load(BANK / "router").route(questions)]
    jobs = [*zip(questions, routed, strict=True), (questions[0], dlp.Mix.of({"cron": 0.7, "shell": 0.3}))]
    print(*await asyncio.gather(*(answer(*job) for job in jobs)), sep="\n")
    await engine.stop()


asyncio.run(main(sys.argv[1]))
