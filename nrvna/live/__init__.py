"""The live view of a workspace, ``flw --watch``: how its jobs are doing, drawn in place until all are finished.

``look`` sees what there is and makes a snapshot of it, ``frame`` turns a snapshot into lines, ``screen`` brings lines
to a terminal, ``watch`` is the loop. Standard library only.
"""
