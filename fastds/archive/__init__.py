# SPDX-License-Identifier: Apache-2.0
"""Archives: many files to one Zarr store, by one process or many workers, in pieces that a killed run never repeats.

request.py says what is computed of which files, workers.py computes its pieces, store.py holds the results, manifest.py
what is done, run.py puts these together for the commands `fastds downscale` and `fastds nowcast`.
"""
