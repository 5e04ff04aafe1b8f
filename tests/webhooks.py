"""Real events to test with: webhooks of GitHub, one a line, gzipped.

They are too many to stand here, so the environment names the file.
"""

from __future__ import annotations

import os
from pathlib import Path

WEBHOOKS = Path(os.environ.get("APERION_TEST_WEBHOOKS", "github_webhooks.jsonl.gz")).absolute()
