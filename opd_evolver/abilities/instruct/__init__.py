"""The dialect `instruct`: what chat models get. One file per ability; the layout of all prompts is in wording.py.

Plain-language instructions in a system message, entries rendered whole under handles, replies in JSON or, for
acting, as `Action: …` or a tool call. Thinking blocks are taken out before anything is read.
"""
