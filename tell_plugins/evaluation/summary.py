"""The table that `eval` prints."""
import json
from tell_plugins.evaluation.answers import read_answers
from tell_plugins.evaluation import retention
from tell_plugins.evaluation.bleed import format_test
from tell_plugins.core.sources import open_task
import glob
def print_summary(out, labels, card):
    f=format_test(card)
    for l in labels:
        for d in sorted(glob.glob(str(out/l/'*-greedy*'))):
            from pathlib import Path
            a=read_answers(Path(d)); split=Path(d).name.split('-')[0]
            ref=open_task(card,split); lab=[json.loads(r)[card.answer.label] if r.startswith('{') else r for r in ref.responses]
            ok=0; cor={'yes':[0,0],'no':[0,0]}; cnt={}
            for x in a:
                try: o=json.loads(x['text']); assert set(o)=={'thought',card.answer.label} and o[card.answer.label] in('yes','no')
                except Exception: continue
                ok+=1; y=lab[x['row']]; p=o[card.answer.label]; cor[y][1]+=1; cor[y][0]+=p==y; cnt[p]=cnt.get(p,0)+1
            bal=sum(c[0]/max(c[1],1) for c in cor.values())/2
            L=retention.read_losses(out/l/'general'); g=read_answers(out/l/'general') if L else []
            print(l, Path(d).name, f'adherent {ok}/{len(a)} bal {bal:.2f} {cnt}', retention.retention(L) if L else '', 'bleed',sum(f(x['text']) for x in g))
