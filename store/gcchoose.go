package store

import (
	"cmp"
	"slices"
)

// count adds up what is alive in every pack.
func (g *collection) count() error {
	g.live = make(map[*pack]int64, len(g.packs))
	for _, r := range g.s.ix.runs {
		it := r.iter()
		for {
			more, err := it.next()
			if err != nil {
				return err
			}
			if !more {
				break
			}
			if g.s.ix.marks.alive[r].has(it.pos) {
				g.live[it.loc.p] += int64(it.loc.stored) + packEntryLen
			}
		}
	}
	return g.ctx.Err()
}

// choose picks the packs that go, the deadest first: they make room for the rest. One whose
// footer is damaged goes as long as the index knows what is in it.
func (g *collection) choose() []*pack {
	var chosen, small []*pack
	for _, p := range g.packs {
		live := g.live[p]
		g.report.Live += live
		dead := p.size - packHeadLen - packTailLen - live
		worth := live == 0 || dead*deadShare > p.size || g.s.ix.isBad(p, footerOff)
		switch {
		case p.gone.Load() || p.size == 0:
		case g.s.ix.marks.young.has(p):
			g.report.Dead += dead
		case live > 0 && slices.Contains(g.ripened, p):
			chosen = append(chosen, p)
		case g.s.sh != nil && (p.doomed.Load() || g.young(p)):
			g.report.Dead += dead
		case worth && g.spared[p] != nil:
			g.report.Kept = append(g.report.Kept, g.spared[p].Error())
		case g.spared[p] != nil:
		case worth:
			chosen = append(chosen, p)
		case p.size < min(smallPack, g.s.o.PackSize/2):
			small = append(small, p)
			g.report.Dead += dead
		default:
			g.report.Dead += dead
		}
	}
	if len(small) >= smallPacks {
		chosen = append(chosen, small...)
	}
	slices.SortFunc(chosen, func(a, b *pack) int { return cmp.Compare(g.live[a], g.live[b]) })
	return chosen
}
