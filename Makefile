# make help lists what there is to do. Each command sets up what it needs; everything made is in .venv and .local.
.DEFAULT_GOAL := help
.PHONY: help run report up down classify dashboard test test-sam-local test-containers test-launch test-notebook test-aws notebook invoke lint train train-sagemaker package-model build deploy destroy bench bench-endpoint clean lock
.NOTPARALLEL:
.DELETE_ON_ERROR:
SHELL = bash
.SHELLFLAGS = -o pipefail -c

# ONNX Runtime's official builds report to Microsoft otherwise.
export ORT_DISABLE_TELEMETRY = 1
# Commands are modules of this folder, and find their packages in .venv.
unexport PYTHONHOME PYTHONPATH PYTHONSAFEPATH
PYTHON ?= python3
PROJECT = .venv/bin/python
DIGITS = .local/data/digits
MODEL = .local/model/metadata.json
PACKAGE = .local/package/archive.txt
BUILT = .local/sam/build/template.yaml
SAM = $(CURDIR)/.local/venvs/sam/bin/sam
# For what needs no account: no credentials, of which SAM would ask AWS.
NO_AWS = -u AWS_PROFILE -u AWS_ACCESS_KEY_ID -u AWS_SECRET_ACCESS_KEY AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true SAM_CLI_TELEMETRY=0
# What the functions are built with must be their runtime's Python.
SAM_BUILD = env PATH="$(CURDIR)/.local/venvs/lambda/bin:$$PATH" SAM_CLI_TELEMETRY=0 $(SAM)

help: ## this list
	@echo "make COMMAND"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  %-15s %s\n", $$1, $$2}'

run: .local/.run $(PACKAGE) $(BUILT) ## the whole workflow on this machine: train, deploy, classify real images, show what became of them
	@$(PROJECT) -m local.run

report: .local/.run ## what the last make run showed, as a page: .local/report.html
	@$(PROJECT) -m local.report.render

up: .local/.run $(PACKAGE) $(BUILT) ## start the local stack and keep it up
	@$(PROJECT) -m local.deployment up

down: ## stop the local stack
	@if [ -x $(PROJECT) ]; then $(PROJECT) -m local.deployment down; else echo "The local stack was not running."; fi

classify: .local/.run $(PACKAGE) $(BUILT) ## IMAGE=path [THRESHOLD=t]: a picture of yours through the local stack
	@$(PROJECT) -m local.classify "$(IMAGE)" --threshold "$(THRESHOLD)"

dashboard: .local/.notebook ## the stack's dashboard, drawn from what the local stack has collected
	@$(PROJECT) -m local.report.dashboard

test: .local/.test $(PACKAGE) $(BUILT) ## unit, conformance and integration tests
	@$(PROJECT) -m pytest

test-sam-local: .local/.test $(PACKAGE) $(BUILT) ## the functions in Docker, through sam local
	@$(PROJECT) -m pytest tests/sam_local

test-containers: .local/.test .local/.containers $(PACKAGE) ## the archive in the scikit-learn image's server, and our own image in Docker
	@$(PROJECT) -m pytest tests/containers

test-launch: .local/.launch .local/.test ## training/launch/ through SageMaker's SDK, against an emulated AWS
	@.local/venvs/sagemaker/bin/python -m pytest tests/launch

test-notebook: .local/.notebook $(BUILT) ## training/starter.ipynb from top to bottom, on a local stack of its own
	@$(PROJECT) -m pytest tests/notebook

test-aws: .local/.test $(MODEL) ## AWS_STACK_NAME=name: the scenarios on a stack that you deployed on AWS for them
	@$(PROJECT) -m pytest tests/aws

notebook: .local/.notebook $(BUILT) ## what training/starter.ipynb needs, and how to open it
	@echo "In VS Code: open training/starter.ipynb and choose the kernel .venv."
	@echo "In a browser: .venv/bin/python -m pip install jupyterlab && .venv/bin/jupyter lab training/starter.ipynb"

invoke: .local/.test $(PACKAGE) $(BUILT) ## FUNCTION=ClassifyImageFunction EVENT=events/classify_image.json: one function in Docker
	@$(PROJECT) -m local.invoke "$(FUNCTION)" "$(EVENT)"

lint: .local/.test ## ruff, sam validate --lint, cfn-lint, statelint, JSON
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	@for file in events/*.json statemachine/*.json; do $(PROJECT) -m json.tool $$file > /dev/null || exit 1; done
	.venv/bin/statelint --ignore=FLOAT statemachine/*.json
	env $(NO_AWS) $(SAM) validate --lint --template template.yaml
	@mkdir -p .local/lint
	@# What SAM makes depends on this parameter; cfn-lint goes through the conditions by itself.
	for preference in AllAtOnce Canary10Percent5Minutes; do \
	  env $(NO_AWS) .local/venvs/sam/bin/python tools/transform.py DeploymentPreference=$$preference > .local/lint/$$preference.yaml || exit 1; \
	done
	.local/venvs/sam/bin/cfn-lint .local/lint/*.yaml

train: .local/.run | $(DIGITS) ## the model, from scikit-learn's scans of digits
	@$(PROJECT) training/train.py

train-sagemaker: .local/.launch | $(DIGITS) ## BUCKET=b ROLE=arn [ARGS="--dry-run true ..."]: the model, as a training job on SageMaker
	@.local/venvs/sagemaker/bin/python -m training.launch.job --bucket "$(BUCKET)" --role "$(ROLE)" $(ARGS)

package-model: .local/.run $(PACKAGE) ## model.tar.gz, as SageMaker wants it

build: .local/.sam ## the functions, for AWS
	@$(SAM_BUILD) build
	@.local/venvs/lambda/bin/python tools/compile.py .aws-sam/build

deploy: build ## to AWS: sam deploy, which shows what it will change and asks
	@$(SAM_BUILD) deploy --guided

destroy: .local/.sam ## the stack on AWS
	@$(SAM_BUILD) delete

bench: .local/.test $(PACKAGE) $(BUILT) ## the figures of benchmarks/README.md
	@$(PROJECT) -m benchmarks.workflow
	@PYTHONPATH=tests/unit $(PROJECT) -m benchmarks.open_report

bench-endpoint: .local/.test .local/.containers .local/.bench $(PACKAGE) ## the endpoint's server against AWS's serving stacks
	@$(PROJECT) benchmarks/endpoint.py --picture docs/endpoint-speed.svg

clean: down ## everything that was made here
	rm -rf .venv .local .aws-sam

.local/.run .local/.test .local/.launch .local/.sam .local/.notebook .local/.containers .local/.bench: .local/.%: requirements/*.txt tools/install.py
	@$(PYTHON) tools/install.py $*
	@touch $@

$(DIGITS): training/prepare.py | .local/.run
	@$(PROJECT) training/prepare.py digits --output $@

# Made once: it may be a model of yours by then. make train makes it again.
$(MODEL): | .local/.run $(DIGITS)
	@$(PROJECT) training/train.py

$(PACKAGE): $(MODEL) endpoint/package.py endpoint/inference.py
	@rm -rf $(@D) && mkdir -p $(@D)
	@$(PROJECT) endpoint/package.py --model-dir .local/model --output $(@D) | tee /dev/stderr | tail -n 1 > $@

$(BUILT): template.yaml samconfig.toml functions/*.py functions/requirements.txt statemachine/*.json
	@$(PROJECT) -m local.deployment build
	@touch $@

LOCK = .local/venvs/uv/bin/uv pip compile --quiet --universal --generate-hashes --no-annotate --custom-compile-command "make lock" pyproject.toml
lock: ## pin pyproject.toml's groups again
	@$(PYTHON) tools/install.py uv
	$(LOCK) --python-version 3.11 --group train --group serve --group local -o requirements/run.txt
	$(LOCK) --python-version 3.11 --group train --group serve --group local --group test --group lint -c requirements/run.txt -o requirements/test.txt
	$(LOCK) --python-version 3.11 --group train --group serve --group local --group test --group lint --group notebook -c requirements/test.txt -o requirements/notebook.txt
	$(LOCK) --python-version 3.11 --group emulator -o requirements/emulator.txt
	$(LOCK) --python-version 3.11 --group sam -o requirements/sam.txt
	$(LOCK) --python-version 3.11 --group sagemaker --group test-launch -o requirements/sagemaker.txt
	$(LOCK) --python-version 3.11 --group uv -o requirements/uv.txt
	$(LOCK) --python-version 3.12 --group build -o requirements/build.txt
	$(LOCK) --python-version 3.12 --group sklearn-serving --overrides requirements/sklearn-serving.overrides -o requirements/sklearn-serving.txt
	$(LOCK) --python-version 3.11 --group bench-serving -o requirements/bench-serving.txt
	$(LOCK) --python-version 3.13 --group lambda-runtime -o requirements/lambda.txt
	$(LOCK) --python-version 3.11 --group serve -c requirements/run.txt -o endpoint/requirements.txt
	$(LOCK) --python-version 3.13 --group functions -o functions/requirements.txt
