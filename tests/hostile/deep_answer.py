# ending: refused, failed
def f(x):
    answer = []
    for _ in range(900):
        answer = [answer]
    return answer
