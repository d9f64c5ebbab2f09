"""The file that recipes name under `external_plugins`: makes `tell/<card>` known to ms-swift.

ms-swift imports it by its path (4.0 puts this folder first on `sys.path`), so it only sees to it
that the package can be imported and hands over to `tell_plugins.bridge`.
"""

import sys
from functools import partial
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[1])
if _ROOT not in sys.path:
    sys.path.insert(0, _ROOT)

from tell_plugins.bridge import register  # noqa: E402
from tell_plugins.bridge.loss import register_loss  # noqa: E402
from tell_plugins.bridge.metric import register_metric  # noqa: E402
from tell_plugins.evaluation import during_training  # noqa: E402

register()
register_loss()
for _metric, (_name, _best) in during_training.NAMES.items():
    _check = partial(during_training.check_card, metric=_metric)
    register_metric(_name, _check, during_training.score_texts, best=_best)
