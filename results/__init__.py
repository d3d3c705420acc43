"""What came out: the record of a run, its tables and plots, and the paper's tables as data.

`record` is written by a run and read by everything else here; `tables` shows one, `paper` lays it beside
the paper, `statistics` says how sure a number is, `plots` draws. The files called `bench_*` are the same for what a
bench writes. Nothing here needs torch.
"""
