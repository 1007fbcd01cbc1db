"""Data Docs of a round's contracts: a page for people, made when a contract fails. Nothing is fetched or sent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opd_evolver.contracts.engine import Contract, context, result_format

SITE = "contracts"


def build(contracts: Sequence[Contract], folder: Path) -> Path:
    """Writes the site into `folder`; returns its index page.

    Args:
        contracts: with their rows; those without rows or expectations are left out.
        folder: made anew.
    """
    import great_expectations as gx
    import pandas as pd
    from great_expectations.checkpoint.actions import UpdateDataDocsAction

    folder.mkdir(parents=True, exist_ok=True)
    made = context()
    made.add_data_docs_site(site_name=SITE, site_config=_site(folder))
    source = made.data_sources.add_pandas("frames")
    for contract in contracts:
        if not contract.rows or not (contract.suite or contract.mild):
            continue
        asset = source.add_dataframe_asset(contract.name)
        definition = asset.add_batch_definition_whole_dataframe("all")
        suite = made.suites.add(gx.ExpectationSuite(name=contract.name, expectations=[*contract.suite, *contract.mild]))
        validation = made.validation_definitions.add(
            gx.ValidationDefinition(name=contract.name, data=definition, suite=suite)
        )
        checkpoint = made.checkpoints.add(
            gx.Checkpoint(
                name=contract.name,
                validation_definitions=[validation],
                actions=[UpdateDataDocsAction(name="docs", site_names=[SITE])],
                result_format=result_format(contract.id_column),
            )
        )
        checkpoint.run(batch_parameters={"dataframe": pd.DataFrame(list(contract.rows))})
    return folder / "index.html"


def _site(folder: Path) -> dict[str, Any]:
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.resolve())},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }
