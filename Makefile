# make help lists the commands. Each one installs what it needs; everything it creates is in .venv, .local and .aws-sam.
.DEFAULT_GOAL := help
.PHONY: help run report up down classify dashboard test fuzz test-sam-local test-containers test-launch test-notebook test-aws notebook invoke lint train train-sagemaker package-model build deploy destroy bench bench-endpoint clean lock
.NOTPARALLEL:
.DELETE_ON_ERROR:
SHELL = bash
.SHELLFLAGS = -o pipefail -c

# Otherwise ONNX Runtime's official builds send telemetry to Microsoft.
export ORT_DISABLE_TELEMETRY = 1
# Commands are modules of this folder, with their packages in .venv.
unexport PYTHONHOME PYTHONPATH PYTHONSAFEPATH
PYTHON ?= python3
PROJECT = .venv/bin/python
DIGITS = .local/data/digits
MODEL = .local/model/metadata.json
PACKAGE = .local/package/archive.txt
BUILT = .local/sam/build/template.yaml
SAM = $(CURDIR)/.local/venvs/sam/bin/sam
# For commands that need no account: without credentials, SAM does not call AWS.
NO_AWS = -u AWS_PROFILE -u AWS_ACCESS_KEY_ID -u AWS_SECRET_ACCESS_KEY AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true SAM_CLI_TELEMETRY=0
# SAM must build the functions with their runtime's Python.
SAM_BUILD = env PATH="$(CURDIR)/.local/venvs/lambda/bin:$$PATH" SAM_CLI_TELEMETRY=0 $(SAM)

help: ## Show this list
	@echo "make COMMAND"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  %-15s %s\n", $$1, $$2}'

run: .local/.run $(PACKAGE) $(BUILT) ## Train, deploy and classify real images on this machine
	@$(PROJECT) -m local.run

report: .local/.run ## Render the last make run as a page, .local/report.html
	@$(PROJECT) -m local.report.render

up: .local/.run $(PACKAGE) $(BUILT) ## Start the local stack and keep it running
	@$(PROJECT) -m local.deployment up

down: ## Stop the local stack
	@if [ -x $(PROJECT) ]; then $(PROJECT) -m local.deployment down; else echo "The local stack was not running."; fi

classify: .local/.run $(PACKAGE) $(BUILT) ## Classify an image of your own: IMAGE=path [THRESHOLD=t]
	@$(PROJECT) -m local.classify "$(IMAGE)" --threshold "$(THRESHOLD)"

dashboard: .local/.notebook ## Draw the stack's dashboard from the local stack's data
	@$(PROJECT) -m local.report.dashboard

test: .local/.test $(PACKAGE) $(BUILT) ## Run the unit, conformance and integration tests
	@$(PROJECT) -m pytest

fuzz: .local/.test ## Send mutated images, events and answers through both hosts: RUNS=100000
	@PYTHONPATH=functions:endpoint:tests/unit PYTHONWARNINGS=ignore $(PROJECT) tests/fuzz/fuzz.py --runs $(or $(RUNS),100000)

test-sam-local: .local/.test $(PACKAGE) $(BUILT) ## Test the functions in Docker, with sam local
	@$(PROJECT) -m pytest tests/sam_local

test-containers: .local/.test .local/.containers $(PACKAGE) ## Test the model archive in the scikit-learn image's server, and our own image in Docker
	@$(PROJECT) -m pytest tests/containers

test-launch: .local/.launch .local/.test ## Test training/launch/ with SageMaker's SDK and an emulated AWS
	@.local/venvs/sagemaker/bin/python -m pytest tests/launch

test-notebook: .local/.notebook $(BUILT) ## Run training/starter.ipynb on its own local stack
	@$(PROJECT) -m pytest tests/notebook

test-aws: .local/.test $(MODEL) ## Run the scenarios on a test stack on AWS: AWS_STACK_NAME=name
	@$(PROJECT) -m pytest tests/aws

notebook: .local/.notebook $(BUILT) ## Set up training/starter.ipynb and show how to open it
	@echo "In VS Code: open training/starter.ipynb and choose the kernel .venv."
	@echo "In a browser: .venv/bin/python -m pip install jupyterlab && .venv/bin/jupyter lab training/starter.ipynb"

invoke: .local/.test $(PACKAGE) $(BUILT) ## Run one function in Docker: FUNCTION=ClassifyImageFunction EVENT=events/classify_image.json
	@$(PROJECT) -m local.invoke "$(FUNCTION)" "$(EVENT)"

lint: .local/.test ## Check code, types, templates, the state machine and workflows
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	@# One run for each folder that its host loads flat, and one for the packages.
	.venv/bin/mypy functions
	.venv/bin/mypy endpoint
	MYPYPATH=endpoint .venv/bin/mypy training --exclude training/launch
	.venv/bin/mypy --explicit-package-bases local monitoring tools training/launch
	@for file in events/*.json statemachine/*.json; do $(PROJECT) -m json.tool $$file > /dev/null || exit 1; done
	.venv/bin/statelint --ignore=FLOAT statemachine/*.json
	env $(NO_AWS) $(SAM) validate --lint --template template.yaml
	@mkdir -p .local/lint
	@# SAM's output depends on this parameter; cfn-lint resolves CloudFormation's conditions itself.
	for preference in AllAtOnce Canary10Percent5Minutes; do \
	  env $(NO_AWS) .local/venvs/sam/bin/python tools/transform.py DeploymentPreference=$$preference > .local/lint/$$preference.yaml || exit 1; \
	done
	.local/venvs/sam/bin/cfn-lint .local/lint/*.yaml .github/oidc.yaml
	.venv/bin/zizmor --offline --no-progress --quiet .github

train: .local/.run | $(DIGITS) ## Train the model on scikit-learn's scans of digits
	@$(PROJECT) training/train.py

train-sagemaker: .local/.launch | $(DIGITS) ## Train the model as a SageMaker job: BUCKET=b ROLE=arn [ARGS="--dry-run true ..."]
	@.local/venvs/sagemaker/bin/python -m training.launch.job --bucket "$(BUCKET)" --role "$(ROLE)" $(ARGS)

package-model: .local/.run $(PACKAGE) ## Build model.tar.gz for SageMaker

build: .local/.sam ## Build the functions for AWS
	@$(SAM_BUILD) build
	@.local/venvs/lambda/bin/python tools/compile.py .aws-sam/build

deploy: build ## Deploy to AWS with sam deploy, which shows the changes and asks for confirmation
	@$(SAM_BUILD) deploy --guided

destroy: .local/.sam ## Delete the stack on AWS
	@$(SAM_BUILD) delete

bench: .local/.test $(PACKAGE) $(BUILT) ## Measure the workflow and the report page, for benchmarks/README.md
	@$(PROJECT) -m benchmarks.workflow
	@PYTHONPATH=tests/unit $(PROJECT) -m benchmarks.open_report

bench-endpoint: .local/.test .local/.containers .local/.bench $(PACKAGE) ## Compare the endpoint's server with AWS's serving stacks
	@$(PROJECT) benchmarks/endpoint.py --chart docs/endpoint-speed.svg

clean: down ## Delete everything that these commands created
	rm -rf .venv .local .aws-sam

.local/.run .local/.test .local/.launch .local/.sam .local/.notebook .local/.containers .local/.bench: .local/.%: requirements/*.txt tools/install.py
	@$(PYTHON) tools/install.py $*
	@touch $@

$(DIGITS): training/prepare.py | .local/.run
	@$(PROJECT) training/prepare.py digits --output $@

# Trained only if missing, because it can be a model of your own; make train retrains it.
$(MODEL): | .local/.run $(DIGITS)
	@$(PROJECT) training/train.py

$(PACKAGE): $(MODEL) endpoint/package.py endpoint/inference.py endpoint/pixels.py
	@rm -rf $(@D) && mkdir -p $(@D)
	@$(PROJECT) endpoint/package.py --model-dir .local/model --output $(@D) | tee /dev/stderr | tail -n 1 > $@

$(BUILT): template.yaml samconfig.toml functions/*.py functions/requirements.txt statemachine/*.json
	@$(PROJECT) -m local.deployment build
	@touch $@

LOCK = .local/venvs/uv/bin/uv pip compile --quiet --universal --generate-hashes --no-annotate --custom-compile-command "make lock" pyproject.toml
lock: ## Pin pyproject.toml's dependency groups again
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
