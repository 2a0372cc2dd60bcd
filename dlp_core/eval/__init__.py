"""Task suites, arms, metrics, reports: does routing and fusing beat naming one adapter, on your own tasks?"""
