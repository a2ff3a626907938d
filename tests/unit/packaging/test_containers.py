"""The container recipes install what README says, and both the same."""

import re

from places import ROOT


def test_both_recipes_do_what_readme_does():
    readme = (ROOT / "README.md").read_text()
    (installed,) = re.findall(r"<!-- ci: demo -->\n```bash\npip install (.*) && nnUNetv2_anomaly demo", readme)
    docker = (ROOT / "containers" / "Dockerfile").read_text()
    apptainer = (ROOT / "containers" / "nnunetv2-anomaly.def").read_text()
    assert re.findall(r"pip install --no-cache-dir (.*)", docker) == [installed]
    assert re.findall(r"pip install --no-cache-dir (.*)", apptainer) == [installed]
    assert re.findall(r"FROM (.*)", docker) == re.findall(r"From: (.*)", apptainer)
    steps = [re.findall(r"apt-get update.*", text) for text in (docker, apptainer)]
    assert steps[0] == steps[1] != []
    python = re.search(r"python:3\.(\d+)", docker)[1]
    assert int(python) >= int(re.search(r"Python 3\.(\d+) or newer", readme)[1])
