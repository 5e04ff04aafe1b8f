"""Real events to test with: webhooks of GitHub, one a line, gzipped.

They are too many to stand here. The environment names the file, or it lies in a folder beside the checkout.
"""

from __future__ import annotations

import os
from pathlib import Path

_BESIDE = Path(__file__).parents[2] / "shared" / "data" / "github_webhooks.jsonl.gz"
WEBHOOKS = Path(os.environ.get("APERION_TEST_WEBHOOKS", _BESIDE)).absolute()
