"""The websocket protocol of sherpa-onnx's streaming server, as its documented clients use it."""

import asyncio
import json

import numpy as np
from running_server import run_server, texts
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError


async def recognize(url, samples, samples_per_message=8000):
    """Send samples and receive results at the same time, as the client that decodes a file."""
    results = []

    async def receive(connection):
        async for message in connection:
            if message == "Done!":
                return
            results.append(json.loads(message))

    async with connect(url) as connection:
        receiving = asyncio.create_task(receive(connection))
        for start in range(0, len(samples), samples_per_message):
            await connection.send(samples[start : start + samples_per_message].tobytes())
            await asyncio.sleep(0.001)
        await connection.send("Done")
        await receiving
    return results


def test_results_equal_those_of_the_other_protocol(server, speech):
    samples = (speech / 2**15).astype(np.float32)
    results = asyncio.run(recognize(f"ws://{server.address}/?language=en", samples))
    finals = [result for result in results if result["is_final"]]
    expected = server.recognize([samples.tobytes()], format="pcm_f32le", language="en")
    assert [final["text"] for final in finals if final["text"]] == texts(expected)
    assert [final["segment"] for final in finals] == list(range(len(finals)))
    assert [result["is_eof"] for result in results] == [False] * (len(results) - 1) + [True]
    for result in results:
        assert len(result["tokens"]) == len(result["timestamps"])
        assert "".join(result["tokens"]).replace("▁", " ").strip() == result["text"]


def test_default_language_is_that_of_the_server(model, speech):
    samples = (speech / 2**15).astype(np.float32)
    with run_server(model, lang="nl") as server:
        results = asyncio.run(recognize(f"ws://{server.address}", samples[:16000]))
    assert {result["language"] for result in results} == {"nl"}


def test_error_is_the_reason_of_the_close_frame(server):
    async def close_frame(query, message):
        try:
            async with connect(f"ws://{server.address}/{query}") as connection:
                await connection.send(message)
                async for _ in connection:
                    pass
        except ConnectionClosedError as error:
            return error.rcvd.code, error.rcvd.reason

    assert asyncio.run(close_frame("?language=xx", b"")) == (
        1008,
        "language 'xx': this model supports en, nl and auto",
    )
    for sample_rate in ("1" * 5000, "-1", "1e3", ""):
        code, reason = asyncio.run(close_frame(f"?sample_rate={sample_rate}", b""))
        assert code == 1007 and reason.startswith(f"sample_rate='{sample_rate[:80]}")
    assert asyncio.run(close_frame("?sample_rate=999999999", b""))[1].startswith("a sample rate of 999999999 Hz")
    code, reason = asyncio.run(close_frame("", "Finished"))
    assert code == 1007 and "expected binary samples, or the text Done" in reason
    code, reason = asyncio.run(close_frame("", np.full(4000, np.inf, np.float32).tobytes()))
    assert code == 1007 and "not finite" in reason
