"""make promote MODEL=hash [OVERRIDE="reason" STACK=name], make rollback [STACK=name]: change the model in service."""

import argparse

from local.command import UsageError, console, report_errors
from local.registry import promote, rollback, split
from local.target import target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="the start of its hash, or its s3:// URL: make models lists them")
    parser.add_argument("--override", default="", help="why to promote it in spite of its comparison; recorded")
    parser.add_argument("--rollback", action="store_true", help="return to the model that was in service before")
    parser.add_argument("--stack", default="", help="name of a stack on AWS; otherwise the local stack")
    options = parser.parse_args()
    with report_errors():
        if not options.rollback and not options.model:
            raise UsageError("MODEL is missing: give MODEL=hash; make models lists them")
        with target(options.stack, start=False) as found:
            done = rollback(found) if options.rollback else promote(found, options.model, options.override)
            name, before = split(done.model_url)[2], split(done.previous_url)[2]
            console.print(f"{name} is in service on {found.place}, in place of {before}.")
            if done.override:
                console.print(f"Overridden: {'; '.join(done.objections)}", markup=False, soft_wrap=True)
            console.print(f"Recorded as s3://{split(done.model_url)[0]}/{done.key}", markup=False, soft_wrap=True)
            if not options.rollback:
                console.print(
                    f"To return to {before}: make rollback{f' STACK={options.stack}' if options.stack else ''}"
                )


if __name__ == "__main__":
    main()
