"""tools/share.py: functions with the same package share one folder of the build."""

import pytest

from tools.share import share

TEMPLATE = """Globals:
  Function:
    CodeUri: functions/
Resources:
  A:
    Properties:
      CodeUri: A
  AB:
    Properties:
      CodeUri: AB
  B:
    Properties:
      CodeUri: B
"""


@pytest.fixture
def build(tmp_path):
    for name in ("A", "AB", "B"):
        (tmp_path / name / "library").mkdir(parents=True)
        (tmp_path / name / "library/module.py").write_text("x = 1\n")
    (tmp_path / "template.yaml").write_text(TEMPLATE)
    return tmp_path


def test_copies_of_a_package_are_deleted_and_the_template_names_the_one_that_is_left(build):
    share(build)
    assert [path.name for path in build.glob("*/")] == ["A"]
    expected = TEMPLATE.replace("CodeUri: AB", "CodeUri: A").replace("CodeUri: B", "CodeUri: A")
    assert (build / "template.yaml").read_text() == expected


@pytest.mark.parametrize("change", ["name", "content"])
def test_another_package_is_kept(build, change):
    module = build / "AB/library/module.py"
    module.rename(module.with_name("other.py")) if change == "name" else module.write_text("x = 2\n")
    share(build)
    assert sorted(path.name for path in build.glob("*/")) == ["A", "AB"]
    assert (build / "template.yaml").read_text() == TEMPLATE.replace("CodeUri: B", "CodeUri: A")


def test_a_package_that_the_template_does_not_name_is_an_error(build):
    (build / "template.yaml").write_text(TEMPLATE.replace("CodeUri: AB", "CodeUri: elsewhere"))
    with pytest.raises(SystemExit, match="names AB 0 times as a CodeUri"):
        share(build)
