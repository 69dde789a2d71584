package collect

import (
	"cmp"
	"slices"

	"github.com/ckptfs/ckptfs/store/pack"
)

// count adds up what is alive in every pack.
func (g *Collection) count() error {
	g.live = make(map[*pack.Pack]int64, len(g.packs))
	err := g.env.Index.EachAlive(func(l *pack.Loc) { g.live[l.P] += int64(l.Stored) + pack.EntryLen })
	return cmp.Or(err, g.ctx.Err())
}

// choose picks the packs that go, the deadest first: they make room for the rest. One whose
// footer is damaged goes as long as the index knows what is in it.
func (g *Collection) choose() []*pack.Pack {
	var chosen, small []*pack.Pack
	for _, p := range g.packs {
		live := g.live[p]
		g.report.Live += live
		dead := p.Size - pack.HeadLen - pack.TailLen - live
		worth := live == 0 || dead*deadShare > p.Size || g.env.Index.FooterBad(p)
		switch {
		case p.Gone.Load() || p.Size == 0:
		case g.env.Index.IsYoung(p):
			g.report.Dead += dead
		case live > 0 && slices.Contains(g.ripened, p):
			chosen = append(chosen, p)
		case g.env.Fleet != nil && (p.Doomed.Load() || g.young(p)):
			g.report.Dead += dead
		case worth && g.spared[p] != nil:
			g.report.Kept = append(g.report.Kept, g.spared[p].Error())
		case g.spared[p] != nil:
		case worth:
			chosen = append(chosen, p)
		case p.Size < min(smallPack, g.env.PackSize/2):
			small = append(small, p)
			g.report.Dead += dead
		default:
			g.report.Dead += dead
		}
	}
	if len(small) >= smallPacks {
		chosen = append(chosen, small...)
	}
	slices.SortFunc(chosen, func(a, b *pack.Pack) int { return cmp.Compare(g.live[a], g.live[b]) })
	return chosen
}
