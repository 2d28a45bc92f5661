"""`sparsegate bench`: what a training step costs, in time and memory, for each method on the same work.

options.py  what is asked; methods.py  the table of methods; measure.py  one measurement, in worker.py's own process;
process.py  how such a process is asked; run.py  all of them, in turn; result.py  what came out; table.py and plot.py
how it is shown. quality/  how well each method learns, and what it forgets.
"""
