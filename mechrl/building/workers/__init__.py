"""Who sweeps: a worker in this process, or many on Dask."""
