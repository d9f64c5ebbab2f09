"""`python -m tests.fresh FOLDER`: the function that lies there with its arguments, called here."""

import pickle
import sys
from pathlib import Path

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    function, arguments = pickle.loads((folder / "call").read_bytes())
    (folder / "result").write_bytes(pickle.dumps(function(*arguments)))
