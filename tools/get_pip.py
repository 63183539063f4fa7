"""What ansible-test finds where it expects its downloaded get-pip script, so that it needs no network but pip's own."""

import subprocess
import sys

subprocess.check_call([sys.executable, "-m", "ensurepip"])
packages = [argument for argument in sys.argv[1:] if not argument.startswith("--no-")]
subprocess.check_call([sys.executable, "-m", "pip", "install", *packages])
