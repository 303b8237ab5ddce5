# SPDX-License-Identifier: Apache-2.0
"""Downscaling and nowcasting of archives: many files to one Zarr store, resumable, by one process or many workers.

request.py describes what is computed from which files, workers.py computes chunks, store.py holds the results,
manifest.py records the chunks that are done, run.py connects these for the commands `fastds downscale` and `fastds
nowcast`, and evaluation.py scores an archive.
"""
