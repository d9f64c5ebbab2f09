"""The file that recipes name under `external_plugins`: makes `tell/<card>` known to ms-swift.

ms-swift imports it by its path, with this folder first on `sys.path`. It only sees to it that the
package can be imported, takes the folder from the path again, where its names would hide others,
and hands over to `tell_plugins.bridge`.
"""

import sys
from functools import partial
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
sys.path[:] = [part for part in sys.path if not part or Path(part).resolve() != _FOLDER]
if str(_FOLDER.parent) not in sys.path:
    sys.path.append(str(_FOLDER.parent))

from tell_plugins.bridge import register  # noqa: E402
from tell_plugins.bridge.loss import register_loss  # noqa: E402
from tell_plugins.bridge.metric import register_metric  # noqa: E402
from tell_plugins.evaluation import during_training  # noqa: E402

register()
register_loss()
for _metric, (_name, _best) in during_training.NAMES.items():
    _check = partial(during_training.check_card, metric=_metric)
    register_metric(_name, _check, during_training.score_texts, best=_best)
