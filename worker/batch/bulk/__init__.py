"""Bulk operations: any number of rows by COPY, or by one statement with an array for each column.

This file imports nothing. `worker.batch.transaction` needs the modules below that write changed objects, and
`operations` needs `worker.batch.transaction`.
"""
