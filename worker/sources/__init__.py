"""Sources for `ctx.walk`: files, APIs, other databases and streams, each resumable behind its last committed batch."""

from worker.sources.csv_file import CsvFile
from worker.sources.json_lines import JsonLines
from worker.sources.pages import AsyncItems, Pages
from worker.sources.parquet_file import ParquetFile
from worker.sources.query import Query
from worker.sources.redis_stream import RedisStream, StreamEntry
from worker.sources.text_lines import TextLines

__all__ = [
    "AsyncItems",
    "CsvFile",
    "JsonLines",
    "Pages",
    "ParquetFile",
    "Query",
    "RedisStream",
    "StreamEntry",
    "TextLines",
]
