"""Write the Grafana dashboards of this folder: `python dashboards/generate.py`.

They are written for Grafana 10.1, and later versions migrate them.
"""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from probes import probes
from programs import programs


def generate() -> dict[str, str]:
    """Return the text of each file, by its name."""
    dashboards = {"probes.json": probes(), "programs.json": programs()}
    return {
        name: json.dumps(dashboard.build(), cls=JSONEncoder, indent=2) + "\n"
        for name, dashboard in dashboards.items()
    }


if __name__ == "__main__":
    for name, text in generate().items():
        Path(__file__).with_name(name).write_text(text)
