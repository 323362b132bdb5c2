"""From scores to an answer: policy, dispatch, watching, recovery, ledger, learning. Never touches a tensor."""
