"""`sparsegate bench --quality`: how well each method learns at its best learning rate, how fast, and what it forgets.

config.py  what is asked; samples.py  who is trained and judged on what; run.py  the protocol, resumable; job.py  what
one process gets and gives back; train.py and judge.py  that process's work, worker.py its door; records.py  the results
file; summary.py  means, intervals and comparisons; table.py and plot.py  how they are shown.
"""
