# make help lists the commands. Each one installs what it needs; everything it creates is in .venv, .local and .aws-sam.
.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.* \#\# .*/\1/p' Makefile)
.NOTPARALLEL:
.DELETE_ON_ERROR:
SHELL = bash
.SHELLFLAGS = -o pipefail -c

# Otherwise ONNX Runtime's official builds send telemetry to Microsoft.
export ORT_DISABLE_TELEMETRY = 1
# Commands are modules of this folder, with their packages in .venv.
unexport PYTHONHOME PYTHONPATH PYTHONSAFEPATH PYTHONWARNINGS
PYTHON ?= python3
PROJECT = .venv/bin/python
DIGITS = .local/data/digits
# Not MODEL, which users give.
TRAINED = .local/model/metadata.json
PACKAGE = .local/package/archive.txt
BUILT = .local/sam/build/template.yaml
# As modules: a script of an environment names its Python by the path where it was installed.
SAM = .local/venvs/sam/bin/python -m samcli
SBOM = .local/venvs/audit/bin/python -m cyclonedx_py requirements --output-reproducible
# The value of a variable for the shell, whatever its characters; make itself would expand a $.
quoted = '$(subst ','\'',$(value $(1)))'
# For commands that need no account: without credentials, SAM does not call AWS.
NO_AWS = -u AWS_PROFILE -u AWS_ACCESS_KEY_ID -u AWS_SECRET_ACCESS_KEY AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true SAM_CLI_TELEMETRY=0
# SAM must build the functions with their runtime's Python.
SAM_BUILD = env PATH="$(CURDIR)/.local/venvs/lambda/bin:$$PATH" SAM_CLI_TELEMETRY=0 SAM_CLI_BETA_PACKAGE_PERFORMANCE=1 $(SAM)

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
	@if [ -e .local/stack/stack.json ]; then $(PROJECT) -m local.deployment down; else echo "The local stack was not running."; fi

classify: .local/.run $(PACKAGE) $(BUILT) ## Classify an image of your own: IMAGE=path [THRESHOLD=t]
	@$(PROJECT) -m local.classify $(call quoted,IMAGE) --threshold=$(call quoted,THRESHOLD)

evaluate: .local/.run $(if $(STACK),,$(PACKAGE) $(BUILT)) ## Evaluate the deployed model on labelled images: DIR=class/folders [ENDPOINT=1] [STACK=name]
	@$(PROJECT) -m local.evaluate $(call quoted,DIR) --endpoint=$(call quoted,ENDPOINT) --stack=$(call quoted,STACK)

trace: .local/.run ## Show what happened to one image: KEY=key or ARN=arn [STACK=name]
	@$(PROJECT) -m local.trace --key=$(call quoted,KEY) --arn=$(call quoted,ARN) --stack=$(call quoted,STACK)

redrive: .local/.run ## Start again what the failure queue holds, locally or with STACK=name on AWS
	@$(PROJECT) -m local.redrive --stack=$(call quoted,STACK)

batch: .local/.run $(PACKAGE) $(BUILT) ## Classify many images: PREFIX=p or MANIFEST=m [THRESHOLD=t CONCURRENCY=n REVIEW=true STACK=name]
	@$(PROJECT) -m local.batch --prefix=$(call quoted,PREFIX) --manifest=$(call quoted,MANIFEST) --threshold=$(call quoted,THRESHOLD) --concurrency=$(call quoted,CONCURRENCY) --review=$(call quoted,REVIEW) --execution=$(call quoted,EXECUTION) --redrive=$(call quoted,REDRIVE) --stack=$(call quoted,STACK)

results: .local/.run $(PACKAGE) $(BUILT) ## List the outcomes of all images: [SINCE=7d OUTCOME=o LABEL=l EXECUTION=e OUTPUT=file.csv or .parquet STACK=name]
	@$(PROJECT) -m local.results --since=$(call quoted,SINCE) --outcome=$(call quoted,OUTCOME) --label=$(call quoted,LABEL) --execution=$(call quoted,EXECUTION) --output=$(call quoted,OUTPUT) --stack=$(call quoted,STACK)

review: .local/.run ## Review the images that wait for people, in your browser: [STACK=name PORT=port REVIEWER=name]
	@$(PROJECT) -m local.review --stack=$(call quoted,STACK) --port=$(call quoted,PORT) --reviewer=$(call quoted,REVIEWER)

review-export: .local/.run $(if $(STACK),,$(PACKAGE) $(BUILT)) ## Write reviews to a file: FORMAT=labelstudio, csv or folders, OUTPUT=path [STATUS=reviewed URLS=presigned STACK=name]
	@$(PROJECT) -m local.review_export --format=$(call quoted,FORMAT) --output=$(call quoted,OUTPUT) --status=$(call quoted,STATUS) --urls=$(call quoted,URLS) --stack=$(call quoted,STACK)

review-import: .local/.run $(if $(STACK),,$(PACKAGE) $(BUILT)) ## Write decisions to the review table: FORMAT=labelstudio, csv or folders, FILE=path [REVIEWER=name STACK=name]
	@$(PROJECT) -m local.review_import --format=$(call quoted,FORMAT) --file=$(call quoted,FILE) --reviewer=$(call quoted,REVIEWER) --stack=$(call quoted,STACK)

review-drain: .local/.run ## Save the review queue of an older version before it is updated: FILE=messages.jsonl STACK=name
	@$(PROJECT) -m local.review_drain --file=$(call quoted,FILE) --stack=$(call quoted,STACK)

accuracy: .local/.run $(if $(STACK),,$(PACKAGE) $(BUILT)) ## Show how accurate the model is in production, by its reviewers: [SINCE=30d STACK=name]
	@$(PROJECT) -m local.accuracy --since=$(call quoted,SINCE) --stack=$(call quoted,STACK)

models: .local/.run ## List the models in the bucket, and which one is in service: [STACK=name BUCKET=bucket/prefix]
	@$(PROJECT) -m local.models --stack=$(call quoted,STACK) --bucket=$(call quoted,BUCKET)

promote: .local/.run ## Put a model into service that its comparison allows: MODEL=hash [OVERRIDE="reason" STACK=name]
	@$(PROJECT) -m local.promote --model=$(call quoted,MODEL) --override=$(call quoted,OVERRIDE) --stack=$(call quoted,STACK)

rollback: .local/.run ## Return to the model that was in service before: [STACK=name]
	@$(PROJECT) -m local.promote --rollback --stack=$(call quoted,STACK)

loop: .local/.run $(BUILT) ## Show the whole circle: images change, alarms, reviews, a retrained model is promoted: [SIZE=small]
	@$(PROJECT) -m local.loop --size=$(call quoted,SIZE)

replay: .local/.run $(if $(STACK),,$(PACKAGE) $(BUILT)) ## Show what another threshold or model would change: THRESHOLD=t, MODEL=folder, s3:// URL or hash [SINCE=30d IMAGES=1000 SECONDS_PER_REVIEW=10 STACK=name]
	@$(PROJECT) -m local.replay --threshold=$(call quoted,THRESHOLD) --model=$(call quoted,MODEL) --since=$(call quoted,SINCE) --images=$(call quoted,IMAGES) --seconds-per-review=$(call quoted,SECONDS_PER_REVIEW) --stack=$(call quoted,STACK)

shadow: .local/.run $(if $(STACK),,$(PACKAGE) $(BUILT)) ## Compare an endpoint's model with its shadow model on real requests: [SINCE=7d STACK=name]
	@$(PROJECT) -m local.shadow --since=$(call quoted,SINCE) --stack=$(call quoted,STACK)

dashboard: .local/.notebook ## Draw the stack's dashboard from the local stack's data
	@$(PROJECT) -m local.report.dashboard

test: .local/.test $(PACKAGE) $(BUILT) ## Run the unit, conformance and integration tests
	@$(PROJECT) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations=10 --durations-min=1

soak: .local/.test $(PACKAGE) $(BUILT) ## Run 5,000 executions while faults are injected: [EXECUTIONS=number]
	@EXECUTIONS="$${EXECUTIONS:-5000}" $(PROJECT) -m pytest tests/integration/test_soak.py

fuzz: .local/.test .local/.fuzz ## Fuzz the parsers of images, events and answers, on both hosts: [RUNS=100000 SEED=0]
	@mkdir -p .local/fuzz
	@for parser in answer event image; do \
	  PYTHONPATH=functions:endpoint:tests/unit $(PROJECT) tests/fuzz/fuzz.py $$parser --runs=$(or $(RUNS),100000) --seed=$(or $(SEED),0) \
	    2> .local/fuzz/$$parser.log || { tail -n 40 .local/fuzz/$$parser.log; exit 1; }; \
	done

test-sam-local: .local/.test $(PACKAGE) $(BUILT) ## Test the functions in Docker, with sam local
	@$(PROJECT) -m pytest tests/sam_local

test-containers: .local/.test .local/.containers $(PACKAGE) ## Test the model archive in the scikit-learn image's server, and our own image in Docker
	@$(PROJECT) -m pytest tests/containers

test-launch: .local/.launch .local/.test ## Test training/launch/ with SageMaker's SDK and an emulated AWS
	@.local/venvs/sagemaker/bin/python -m pytest tests/launch

test-exchange: .local/.label-studio ## Test the exchange of reviews with Label Studio's SDK
	@.local/venvs/label-studio/bin/python -m pytest tests/label_studio

test-notebook: .local/.notebook $(BUILT) ## Run training/starter.ipynb on its own local stack
	@$(PROJECT) -m pytest tests/notebook

test-aws: .local/.test $(TRAINED) ## Run the scenarios on a test stack on AWS: AWS_STACK_NAME=name
	@$(PROJECT) -m pytest tests/aws

notebook: .local/.notebook $(BUILT) ## Set up training/starter.ipynb and show how to open it
	@echo "In VS Code: open training/starter.ipynb and choose the kernel .venv."
	@echo "In a browser: .venv/bin/python -m pip install jupyterlab && .venv/bin/jupyter lab training/starter.ipynb"

invoke: .local/.test $(PACKAGE) $(BUILT) ## Run one function in Docker: FUNCTION=ClassifyImageFunction EVENT=events/classify_image.json
	@$(PROJECT) -m local.invoke $(call quoted,FUNCTION) $(call quoted,EVENT)

lint: .local/.test .local/.lint ## Check code, types, templates, the state machine and workflows
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	@# One run for each folder that its host loads flat, and one for the packages.
	$(PROJECT) -m mypy functions
	$(PROJECT) -m mypy endpoint
	MYPYPATH=endpoint $(PROJECT) -m mypy training --exclude training/launch
	$(PROJECT) -m mypy --explicit-package-bases local monitoring review tools training/launch
	@for file in events/*.json statemachine/*.json; do $(PROJECT) -m json.tool $$file > /dev/null || exit 1; done
	$(PROJECT) tools/lint_states.py
	env $(NO_AWS) $(SAM) validate --lint --template template.yaml
	@mkdir -p .local/lint
	@# SAM's output depends on this parameter; cfn-lint resolves CloudFormation's conditions itself.
	for preference in AllAtOnce Canary10Percent5Minutes; do \
	  env $(NO_AWS) .local/venvs/sam/bin/python tools/transform.py DeploymentPreference=$$preference > .local/lint/$$preference.yaml || exit 1; \
	done
	.local/venvs/sam/bin/python .local/venvs/sam/bin/cfn-lint .local/lint/*.yaml .github/oidc.yaml
	LOG_LEVEL=ERROR .local/venvs/checkov/bin/python -m checkov.main --config-file .checkov.yaml
	.venv/bin/zizmor --offline --no-progress --quiet .github

audit: .local/.audit ## Look up known vulnerabilities of all pinned packages
	@failed=0; for file in $(AUDITED); do \
	  echo "$$file"; .local/venvs/audit/bin/python -m pip_audit --disable-pip --require-hashes -r $$file || failed=1; \
	done; exit $$failed

train: .local/.run | $(DIGITS) ## Train the model on scikit-learn's scans of digits
	@$(PROJECT) training/train.py

retrain: .local/.run $(if $(and $(REMOTE),$(STACK),$(BUCKET),$(ROLE)),.local/.launch) ## Train a model on reviewed images too, compare it with the one in service, upload it: [DATA=folder ARGS="--epochs 20" MARGIN=0.02 STACK=name REMOTE=1 BUCKET=b ROLE=arn]
	@$(PROJECT) -m local.retrain --data=$(call quoted,DATA) --arguments=$(call quoted,ARGS) --margin=$(call quoted,MARGIN) --stack=$(call quoted,STACK) --remote=$(call quoted,REMOTE) --bucket=$(call quoted,BUCKET) --role=$(call quoted,ROLE)

train-sagemaker: .local/.launch | $(DIGITS) ## Train the model as a SageMaker job: BUCKET=b ROLE=arn [ARGS="--dry-run true ..."]
	@.local/venvs/sagemaker/bin/python -m training.launch.job --bucket "$(BUCKET)" --role "$(ROLE)" $(ARGS)

package-model: .local/.run $(PACKAGE) ## Build model.tar.gz for SageMaker

# For build and deploy alike, so that the functions are built for the architecture that is deployed.
ENV ?= default
OVERRIDES = $(if $(PARAMETERS),--parameter-overrides $(if $(findstring Architecture=,$(PARAMETERS)),,Architecture=arm64) $(PARAMETERS))
build: .local/.sam .local/.audit ## Build the functions for AWS, and .aws-sam/sbom.json, a CycloneDX list of their packages
	@$(SAM_BUILD) build --config-env $(ENV) $(OVERRIDES)
	@.local/venvs/lambda/bin/python tools/share.py .aws-sam/build
	@.local/venvs/lambda/bin/python tools/trim.py .aws-sam/build
	@.local/venvs/lambda/bin/python tools/compile.py .aws-sam/build
	@$(SBOM) functions/requirements.txt --output-file .aws-sam/sbom.json

deploy: build ## Deploy to AWS, after showing the changes: [ENV=staging] [PARAMETERS="EndpointType=serverless ModelDataUrl=s3://..."]
	@$(SAM_BUILD) deploy --config-env $(ENV) $(OVERRIDES)
	@echo "Uploads to a new bucket start nothing for about five minutes: S3 needs them to begin sending events."

destroy: .local/.sam ## Delete the stack on AWS, and say what remains: [ENV=staging]
	@.local/venvs/sam/bin/python tools/destroy.py $(ENV)

empty-bucket: .local/.sam ## Delete every object of a bucket, with all versions: BUCKET=name
	@.local/venvs/sam/bin/python tools/empty_bucket.py "$(BUCKET)"

bench: .local/.test $(PACKAGE) $(BUILT) ## Measure the workflow and the report page, for benchmarks/README.md
	@$(PROJECT) -m benchmarks.workflow
	@PYTHONPATH=tests/unit $(PROJECT) -m benchmarks.open_report

bench-endpoint: .local/.test .local/.containers .local/.bench $(PACKAGE) ## Compare the endpoint's server with AWS's serving stacks
	@$(PROJECT) benchmarks/endpoint.py --chart docs/endpoint-speed.svg

clean: down ## Delete everything that these commands created, except models of your own
	@$(PYTHON) tools/clean.py

.local/.run .local/.test .local/.lint .local/.launch .local/.label-studio .local/.sam .local/.notebook .local/.containers .local/.bench .local/.audit .local/.fuzz: .local/.%: requirements/*.txt tools/install.py
	@$(PYTHON) tools/install.py $*
	@touch $@

$(DIGITS): training/prepare.py | .local/.run
	@$(PROJECT) training/prepare.py digits --output $@

# Trained only if missing, because it can be a model of your own; make train retrains it.
$(TRAINED): | .local/.run $(DIGITS)
	@$(PROJECT) training/train.py

$(PACKAGE): $(TRAINED) endpoint/package.py endpoint/inference.py endpoint/pixels.py
	@mkdir -p $(@D)
	@$(PROJECT) endpoint/package.py --model-dir .local/model --output $(@D) | tee $@.log
	@tail -n 1 $@.log > $@ && rm $@.log

$(BUILT): template.yaml samconfig.toml functions/*.py functions/*.json functions/requirements.txt statemachine/*.json tools/share.py tools/trim.py tools/compile.py
	@$(PROJECT) -m local.deployment build
	@touch $@

AUDITED = functions/requirements.txt endpoint/requirements.txt $(filter-out requirements/torch.txt,$(wildcard requirements/*.txt))
LOCK = .local/venvs/uv/bin/uv pip compile --quiet --universal --generate-hashes --no-annotate --custom-compile-command "make lock" pyproject.toml
lock: ## Pin pyproject.toml's dependency groups again
	@$(PYTHON) tools/install.py uv
	$(LOCK) --python-version 3.11 --group train --group serve --group local --group results -o requirements/run.txt
	$(LOCK) --python-version 3.11 --group train --group serve --group local --group results --group test --group lint -c requirements/run.txt -o requirements/test.txt
	$(LOCK) --python-version 3.11 --group train --group serve --group local --group results --group test --group lint --group notebook -c requirements/test.txt -o requirements/notebook.txt
	$(LOCK) --python-version 3.11 --group emulator -o requirements/emulator.txt
	$(LOCK) --python-version 3.11 --group sam -o requirements/sam.txt
	$(LOCK) --python-version 3.11 --group checkov -o requirements/checkov.txt
	$(LOCK) --python-version 3.11 --group sagemaker --group test-launch -o requirements/sagemaker.txt
	$(LOCK) --python-version 3.11 --group label-studio --overrides requirements/label-studio.overrides -o requirements/label-studio.txt
	$(LOCK) --python-version 3.11 --group audit -o requirements/audit.txt
	$(LOCK) --python-version 3.11 --group fuzz -o requirements/fuzz.txt
	$(LOCK) --python-version 3.11 --group uv -o requirements/uv.txt
	$(LOCK) --python-version 3.12 --group build -o requirements/build.txt
	$(LOCK) --python-version 3.12 --group sklearn-serving --overrides requirements/sklearn-serving.overrides -o requirements/sklearn-serving.txt
	$(LOCK) --python-version 3.11 --group bench-serving -o requirements/bench-serving.txt
	$(LOCK) --python-version 3.13 --group lambda-runtime -o requirements/lambda.txt
	$(LOCK) --python-version 3.11 --group serve -c requirements/run.txt -o endpoint/requirements.txt
	$(LOCK) --python-version 3.13 --group functions -o functions/requirements.txt
