"""What answers may be held to: grammars, JSON schemas and closed lists, and what is wrong with one that was given.

Text in, text out: no model, nothing but the standard library, so that ``wrk`` can refuse a bad one at once.
"""
