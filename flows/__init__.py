"""Thin Prefect flows: order, retries, where it runs. A project's, not the library's."""
