"""Which pins apply to the Python of another machine."""

import pytest
from build_wheelhouse import ROOT, WheelhouseError, replace_wheels, requirements_for

LOCK = """# comment
both==1
colorama==0.4.6 ; sys_platform == 'win32'
readline==3 ; python_full_version < '3.11' and sys_platform == 'win32'
old==1 ; python_full_version >= '3.10' and python_full_version < '3.11'
split==1 ; python_full_version < '3.11'
split==2 ; python_full_version == '3.11.*'
split==3 ; python_full_version >= '3.12'
"""


@pytest.mark.parametrize("version, chosen", [("3.10", 1), ("3.11", 2), ("3.12", 3), ("3.13", 3)])
def test_conditions_are_judged_for_the_target(version, chosen):
    old = ["old==1"] if version == "3.10" else []
    assert requirements_for(LOCK, version) == ["both==1", *old, f"split=={chosen}"]


def test_unknown_condition_is_refused():
    with pytest.raises(WheelhouseError, match="cannot judge the condition in .a==1 ; os_name"):
        requirements_for("a==1 ; os_name == 'nt'", "3.12")


def test_nothing_but_wheels_is_removed(tmp_path):
    new, folder = tmp_path / "new", tmp_path / "home"
    for path in (new / "a-2.whl", folder / "a-1.whl", folder / "thesis.txt"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name)
    replace_wheels(new, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["a-2.whl", "thesis.txt"]


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_requirements_pin_each_package_once_and_no_torch(version):
    pins = requirements_for((ROOT / "requirements.txt").read_text("utf-8"), version)
    names = [pin.split("==")[0] for pin in pins]
    assert len(set(names)) == len(names) > 40
    assert {"numpy", "fvcore", "lvis", "opencv-python-headless", "pytest"} <= set(names)
    unwanted = ("torch", "torchvision", "triton", "nvidia", "cuda", "opencv-python")
    assert not [name for name in names if name in unwanted or name.startswith(unwanted[3:5])]
