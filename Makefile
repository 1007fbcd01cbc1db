# Two commands do it: `make coevolve`, then `make test`. Everything goes into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PY := .venv/bin/python
STAMP := .venv/.installed

.PHONY: install coevolve test check seed-policy clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@began=$$(date +%s); \
	if command -v uv >/dev/null; then UV=uv; else \
	  { python3 -m venv .venv-uv && .venv-uv/bin/pip install --quiet --disable-pip-version-check uv; } \
	    || python3 -m pip install --quiet --disable-pip-version-check --target .venv-uv uv; UV=.venv-uv/bin/uv; fi; \
	[ -x $(PY) ] || $$UV venv --quiet --seed --python 3.11 .venv || $$UV venv --quiet --seed .venv; \
	$$UV pip install --quiet --compile-bytecode --python $(PY) -c constraints.txt -e '.[grid,household]' --group dev; \
	touch $(STAMP); echo "installation: $$(( $$(date +%s) - began )) s" >&2

coevolve: install
	@.venv/bin/opd run --preset laptop --up

test: install
	@$(PY) -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations 20 --durations-min 30

check: install
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check --quiet .
	@$(PY) -m mypy
	@.venv/bin/lint-imports --no-cache
	@$(PY) -m checks.sizes

seed-policy: install
	@$(PY) -m opd_evolver.seed --out opd_evolver/assets/seed-policy
	@.venv/bin/dvc commit --force seed_policy  # `dvc repro` leaves a frozen stage alone, forced or not

clean:
	rm -rf .venv .venv-uv .mypy_cache .ruff_cache .pytest_cache
