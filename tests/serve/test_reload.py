"""Reload of the model while streams are open."""

import gc
import json
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace

import pytest
import torch
from running_server import blocks, load_model, receive_all, receive_result, run_server, server_process, texts
from tiny_experiment import write_complementary_masks

from icefall_pathways.experiment import layout
from icefall_pathways.serve.config import ServeConfig
from icefall_pathways.serve.recognizers import SpeechModel


@pytest.fixture(scope="module")
def other_dir(served_dir, tmp_path_factory):
    """Return a model with other masks."""
    folder = tmp_path_factory.mktemp("other") / "exp"
    shutil.copytree(served_dir, folder)
    torch.manual_seed(1)
    write_complementary_masks(folder)
    return folder


@pytest.fixture
def served(served_dir, tmp_path):
    """Return a folder with the model that can be replaced."""
    return shutil.copytree(served_dir, tmp_path / "served")


def install(source, target):
    """Replace the model of a running server."""
    shutil.rmtree(target)
    shutil.copytree(source, target)


def is_released(reference):
    """Return whether an object is released soon; the end of a connection takes some steps of the event loop."""
    for _ in range(20):
        gc.collect()
        if reference() is None:
            return True
        time.sleep(0.1)
    return False


def without_partial(messages):
    """Return the messages that do not depend on the speed of the client."""
    return [message for message in messages if message["type"] != "partial"]


@pytest.mark.parametrize("engine", ["eager", "onnx"])
def test_open_streams_keep_their_model_and_new_ones_have_the_new_one(served, other_dir, speech, engine):
    """Results are those of servers that never reload, and the previous model is released."""
    audio = blocks(speech)
    with run_server(load_model(other_dir, engine=engine)) as server:
        expected_new = without_partial(server.recognize(audio, language="en"))
    model = load_model(served, engine=engine)
    with run_server(model, exp_dir=served, endpoint=model.recognizer.endpoints, engine=engine) as server:
        expected_old = without_partial(server.recognize(audio, language="en"))
        assert texts(expected_old) != texts(expected_new)
        previous = weakref.ref(model.recognizer.decoder.model)
        del model
        with server.connect() as client:
            client.send(json.dumps({"type": "start", "language": "en"}))
            for block in audio[:15]:
                client.send(block)
            messages = receive_result(client)  # the stream has a state of the old model
            install(other_dir, served)
            server.reload()
            assert without_partial(server.recognize(audio, language="en")) == expected_new
            for block in audio[15:]:
                client.send(block)
            client.send('{"type": "end"}')
            messages += receive_all(client)
        assert without_partial(messages) == expected_old
        assert is_released(previous)


def test_damaged_model_leaves_the_previous_one(served, other_dir, speech, caplog):
    audio = blocks(speech)
    model = load_model(served)
    with run_server(model, exp_dir=served, endpoint=model.recognizer.endpoints) as server:
        expected = without_partial(server.recognize(audio, language="en"))
        (served / layout.MASKS_FILE).write_bytes(b"damaged")
        server.reload()
        assert without_partial(server.recognize(audio, language="en")) == expected
        assert server.service.model is model
        (message,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert "still serving the previous one" in message and str(served) in message
        install(other_dir, served)
        server.reload()
        assert server.service.model is not model


def test_model_without_the_default_language_is_not_loaded(served):
    """Otherwise the requests without a language would fail."""
    model = load_model(served)
    with run_server(model, exp_dir=served, lang="de") as server:
        server.reload()
        assert server.service.model is model
    with pytest.raises(ValueError, match="--lang: language 'de': this model supports en, nl and auto"):
        SpeechModel.load(ServeConfig(exp_dir=served, engine="eager", vad="none", lang="de"))
    layout.language_id_file(served).unlink()
    with pytest.raises(ValueError, match=r"this model supports en, nl$"):  # it cannot identify them
        SpeechModel.load(ServeConfig(exp_dir=served, engine="eager", vad="none", lang="de"))


def test_signals_in_quick_succession_load_the_files_after_the_last_one(served, monkeypatch):
    model = load_model(served)
    with run_server(model, exp_dir=served) as server:
        loads = []

        def load(config):
            loads.append(config)
            if len(loads) == 1:
                server.loop.call_soon_threadsafe(server.service.reload)
                server.loop.call_soon_threadsafe(server.service.reload)
                server.run_in_loop(lambda: None)  # both signals have arrived
            return replace(model, name=f"load {len(loads)}")

        monkeypatch.setattr("icefall_pathways.serve.recognizers.SpeechModel.load", load)
        server.reload()
        assert len(loads) == 2 and server.service.model.name == "load 2"


def test_sighup_reloads_the_model(served, free_port):
    """And reports a damaged one; the process continues."""
    with server_process(served, free_port) as process:
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "reloaded served (en nl)\n"
        (served / layout.MASKS_FILE).write_bytes(b"damaged")
        process.send_signal(signal.SIGHUP)
        assert "still serving the previous one" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_sighup_while_the_model_is_loaded_loads_it_again(served, free_port):
    """Its default action would end the process, which systemd does not restart then."""
    code = """
import os, signal, sys
from pathlib import Path
from icefall_pathways.serve.config import ServeConfig
from icefall_pathways.serve.server import SpeechModel, serve

load = SpeechModel.load
def load_at_signal(config):
    SpeechModel.load = load
    os.kill(os.getpid(), signal.SIGHUP)
    return load(config)

SpeechModel.load = load_at_signal
serve(ServeConfig(exp_dir=Path(sys.argv[1]), port=int(sys.argv[2]), engine="eager", vad="none"))
"""
    command = [sys.executable, "-c", code, str(served), str(free_port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("serving served")
        assert process.stdout.readline() == "reloaded served (en nl)\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
