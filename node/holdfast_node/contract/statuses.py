"""Exit statuses of a trainer that mean something to the agent, and which endings are worth another generation.

Numbers from sysexits.h where it has one for the purpose.
"""

#: The pinned port is taken (EX_UNAVAILABLE): whoever holds it will hold it in the next generation too.
EXIT_PORT = 69
#: Something passed that another start may find mended (EX_TEMPFAIL): a peer was lost, a tunnel ended. A script that
#: ends with it asks for the same.
EXIT_LOST = 75
#: A command was refused that the job cannot do without (EX_NOPERM): an attack or a misuse, which is never repeated.
EXIT_REFUSED = 77


def restartable(status: int) -> bool:
    """Return whether a part that ended so may go on as a new generation: killed by a signal, or lost.

    Every other status was chosen by the program that ended, and it would choose it again: a script's exception, a
    refusal, a document that does not verify.
    """
    return status < 0 or status == EXIT_LOST
