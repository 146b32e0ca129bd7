"""The systemd unit in deploy/ is valid; collected only where systemd is installed."""

import re
import subprocess
from pathlib import Path

UNIT = Path(__file__).resolve().parents[1] / "deploy" / "icefall-pathways@.service"


def test_systemd_accepts_the_unit(tmp_path):
    """With a program that exists."""
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (tmp_path / UNIT.name).write_text(text)
    command = ["systemd-analyze", "verify", str(tmp_path / UNIT.name.replace("@", "@6006"))]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "icefall-pathways" not in result.stderr, result.stderr
