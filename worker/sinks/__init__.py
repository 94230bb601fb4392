"""Sinks: files that a job writes, one part for each batch. Exactly the parts of committed batches count."""

from worker.sinks.csv_parts import CsvParts
from worker.sinks.json_lines_parts import JsonLinesParts
from worker.sinks.parquet_parts import ParquetParts

__all__ = ["CsvParts", "JsonLinesParts", "ParquetParts"]
