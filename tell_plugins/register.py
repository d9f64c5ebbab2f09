"""The file that recipes name under `external_plugins`: makes `tell/<card>` known to ms-swift.

ms-swift imports it by its path (4.0 puts this folder first on `sys.path`), so it only sees to it
that the package can be imported and hands over to `tell_plugins.bridge`.
"""

import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[1])
if _ROOT not in sys.path:
    sys.path.insert(0, _ROOT)

from tell_plugins.bridge import register  # noqa: E402
from tell_plugins.bridge.metric import register_metric  # noqa: E402
from tell_plugins.evaluation import during_training  # noqa: E402

register()
register_metric(
    during_training.NAME,
    during_training.check_card,
    during_training.score_texts,
    best=during_training.BEST,
)
