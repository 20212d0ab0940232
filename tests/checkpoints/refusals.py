"""What both scripts say of requests that a server refuses."""


def refused(call, error, what):
    """An error unless the call ends with this error, which says so."""
    try:
        call()
    except error as e:
        assert what in str(e), e
    else:
        raise AssertionError(what)
